"""What a run or a cluster needs, tried before it is paid for."""
