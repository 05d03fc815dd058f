"""The systemd units of the agent: a service that may do little, and the timer that wakes it.

The service runs as its own user, sees a system it cannot write to, and keeps to a limit of memory under which the
kernel ends the cell that is too large and not the board. What measuring needs stays allowed: compiled code may be made
and run (no MemoryDenyWriteExecute), the firmware may be asked (two devices of a Raspberry Pi), and other processes may
be seen, because rows say how busy the machine was; and the kernel may be asked how far its clock is off.

Source: systemd.exec(5), systemd.resource-control(5), systemd.timer(5)
"""

from __future__ import annotations

import grp
import re
from pathlib import Path

from archbench.hardware.agent.config import AgentConfig

USER = "archbench-agent"
SERVICE, TIMER, SYSUSERS = "archbench-agent.service", "archbench-agent.timer", "archbench-agent.conf"
SYSTEM_UNITS, SYSTEM_USERS = Path("/etc/systemd/system"), Path("/etc/sysusers.d")
STOP_S = 120  # for a run to put away what it measured; child.py asks first and kills after a minute

_SERVICE = """\
# Written by `archbench agent init`. Changes belong into a drop-in: systemctl edit archbench-agent.service
[Unit]
Description=archbench agent: measures new commits and delivers the results
Wants=network-online.target
After=network-online.target time-sync.target

[Service]
Type=oneshot
ExecStart={python} -m archbench agent run --once --state {state}
WorkingDirectory={state}
User={user}
SupplementaryGroups={groups}
Environment=HOME={state} PYTHONUNBUFFERED=1
UMask=0077

# 1: something asks for attention; `systemctl --failed` shows it. 3: another one is at work.
SuccessExitStatus=3
Restart=on-abnormal
RestartSec=10min
TimeoutStartSec=infinity
TimeoutStopSec={stop}
KillMode=mixed

# A cell that is too large ends; the agent and the other cells go on.
MemoryMax={memory}
MemorySwapMax=0
OOMPolicy=continue
TasksMax=512

NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ReadWritePaths={state}
ProtectHome=yes
PrivateTmp=yes
DevicePolicy=closed
DeviceAllow=/dev/vcio rw
DeviceAllow=/dev/vcio_gencmd rw
DeviceAllow=/dev/vchiq rw
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native
# The kernel is asked how far its clock is off; without capabilities nobody can set it.
SystemCallFilter=@system-service adjtimex clock_adjtime
SystemCallErrorNumber=EPERM
"""
_TIMER = """\
# Written by `archbench agent init`.
[Unit]
Description=Wakes the archbench agent

[Timer]
OnBootSec=3min
OnCalendar={schedule}
Persistent=true
RandomizedDelaySec=2min

[Install]
WantedBy=timers.target
"""
_SYSUSERS = """\
# Written by `archbench agent init`.
u {user} - "archbench agent" {state} /usr/sbin/nologin
"""


def units(config: AgentConfig, python: str) -> dict[str, str]:
    """The texts of the units by file name. ``python`` is the interpreter the agent itself runs with.

    Raises ValueError for a path no unit can name.
    """
    state, interpreter = word(str(config.state)), word(python)
    service = _SERVICE.format(
        python=interpreter,
        state=state,
        user=USER,
        groups="video" if _is_group("video") else "",
        stop=STOP_S,
        memory=config.memory_max,
    )
    return {SERVICE: service, TIMER: _TIMER.format(schedule=config.schedule.replace("%", "%%"))}


def sysusers(config: AgentConfig) -> str:
    """The user of the service, for systemd-sysusers."""
    return _SYSUSERS.format(user=USER, state=config.state)


def word(text: str) -> str:
    """A path as one word of a unit: systemd reads % as its own."""
    if not re.fullmatch(r"[\w./+:@%-]+", text):
        raise ValueError(f"{text!r} cannot stand in a systemd unit: letters, digits and . _ + : @ - only")
    return text.replace("%", "%%")


def _is_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True
