# CLI11 2.1: command lines of the tools.
find_package(CLI11 2.1 REQUIRED)
