# utf8proc 2.8 (its .pc file says 2.6): Unicode categories, case and normal forms. zlib 1.2: the merges file.
pkg_check_modules(utf8proc REQUIRED IMPORTED_TARGET libutf8proc>=2.6)
find_package(ZLIB REQUIRED)
