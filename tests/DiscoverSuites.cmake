# Run by ctest before it runs tests: asks a test program for its suites and registers one ctest test for each.
# Given: EXECUTABLE, LIST_FILE (rewritten when the program is newer), LABELS, TIMEOUT.
if(NOT EXISTS "${EXECUTABLE}")
  # Shown as "Not Run", which is a failure.
  add_test(${NAME}_NOT_BUILT ${NAME}_NOT_BUILT)
  return()
endif()

if(NOT EXISTS "${LIST_FILE}" OR "${EXECUTABLE}" IS_NEWER_THAN "${LIST_FILE}")
  execute_process(COMMAND "${EXECUTABLE}" --gtest_list_tests OUTPUT_VARIABLE listing RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${EXECUTABLE} --gtest_list_tests failed: ${status}")
  endif()
  # A suite stands at the beginning of its line and ends in a dot; its tests are indented.
  string(REPLACE ";" "," listing "${listing}")
  string(REPLACE "\n" ";" lines "${listing}")
  set(script "")
  foreach(line IN LISTS lines)
    if(line MATCHES "^([^ ]+)\\.( |$)")
      set(suite "${CMAKE_MATCH_1}")
      string(APPEND script
        "add_test([==[${suite}]==] [==[${EXECUTABLE}]==] [==[--gtest_filter=${suite}.*]==] --gtest_color=no)\n"
        "set_tests_properties([==[${suite}]==] PROPERTIES LABELS [==[${LABELS}]==] TIMEOUT ${TIMEOUT} SKIP_RETURN_CODE 77)\n")
    endif()
  endforeach()
  file(WRITE "${LIST_FILE}" "${script}")
endif()
include("${LIST_FILE}")
