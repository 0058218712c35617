# libjpeg-turbo 2.1 (its libjpeg API), libpng 1.6, libwebp 1.2: decoding from memory.
pkg_check_modules(libjpeg REQUIRED IMPORTED_TARGET libjpeg>=2.1)
pkg_check_modules(libpng REQUIRED IMPORTED_TARGET libpng>=1.6)
pkg_check_modules(libwebp REQUIRED IMPORTED_TARGET libwebp>=1.2)
