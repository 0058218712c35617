# OpenSSL 3: SHA-256 of checkpoints.
find_package(OpenSSL 3 REQUIRED COMPONENTS Crypto)
