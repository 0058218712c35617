# OpenCV 4.6, core and imgproc only: drawing. Debian's CMake package would pull in every module, so it is found by hand.
find_path(OpenCV_INCLUDE_DIR opencv2/imgproc.hpp PATH_SUFFIXES opencv4 REQUIRED)
add_library(opencv_drawing INTERFACE)
target_include_directories(opencv_drawing SYSTEM INTERFACE "${OpenCV_INCLUDE_DIR}")
foreach(_module core imgproc)
  find_library(OpenCV_${_module}_LIBRARY opencv_${_module} REQUIRED)
  target_link_libraries(opencv_drawing INTERFACE "${OpenCV_${_module}_LIBRARY}")
endforeach()
