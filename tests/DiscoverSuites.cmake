# Run by ctest before it runs tests: asks a test program for its suites and registers one ctest test for each.
# One compute thread each: several tests run at a time, and threads that wait for a busy core spin.
# Given: EXECUTABLE, LABELS, TIMEOUT. Nothing is cached: some suites exist only where the reference data is.
function(register_suite suite)
  add_test("${suite}" "${EXECUTABLE}" "--gtest_filter=${suite}.*" --gtest_color=no)
  set_tests_properties("${suite}" PROPERTIES LABELS "${LABELS}" TIMEOUT "${TIMEOUT}" SKIP_RETURN_CODE 77
    ENVIRONMENT OMP_NUM_THREADS=1)
endfunction()

if(NOT EXISTS "${EXECUTABLE}")
  # ctest shows it as "Not Run", which is a failure.
  register_suite("${EXECUTABLE} is not built")
  return()
endif()

execute_process(COMMAND "${EXECUTABLE}" --gtest_list_tests OUTPUT_VARIABLE listing RESULT_VARIABLE status)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "${EXECUTABLE} --gtest_list_tests failed: ${status}")
endif()
# A suite stands at the beginning of its line and ends in a dot; its tests are indented.
string(REPLACE ";" "," listing "${listing}")
string(REPLACE "\n" ";" lines "${listing}")
foreach(line IN LISTS lines)
  if(line MATCHES "^([^ ]+)\\.( |$)")
    register_suite("${CMAKE_MATCH_1}")
  endif()
endforeach()
