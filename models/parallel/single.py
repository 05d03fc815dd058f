"""One process with all cores: what every other way is compared with, and must agree with."""

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._build import built
from archbench.models.parallel._trainer import Replicas
from archbench.track import Contender

trainer = Replicas

CONTENDER: Contender[ParallelCase] = Contender(build=built(__name__, ranks=1))
