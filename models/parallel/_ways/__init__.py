"""What the ways of cutting up the work share: replicas, shards, stages."""
