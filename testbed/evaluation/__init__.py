"""Ways of measuring worst-case failure, one file each."""
