"""Work on very many images: the same function on every shard, in processes of one machine or on those of a cluster."""
