"""What experiments share: settings and results, cells on a cluster, real data, SGD on fresh samples."""
