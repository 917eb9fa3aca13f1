# cmake -DCOMMANDS=<compile_commands.json> -DSOURCE=<file> -DEXPECTED=<regex> -P CompileFail.cmake
#
# Compiles the source as the build would, up to the checks of its syntax and types. Succeeds only if the compiler fails
# and says what is expected.

file(READ "${COMMANDS}" commands)
string(JSON count LENGTH "${commands}")
math(EXPR last "${count} - 1")
set(command)
foreach(i RANGE ${last})
  string(JSON file GET "${commands}" ${i} file)
  if(file STREQUAL SOURCE)
    string(JSON command GET "${commands}" ${i} command)
    string(JSON directory GET "${commands}" ${i} directory)
    break()
  endif()
endforeach()
if(NOT command)
  message(FATAL_ERROR "${COMMANDS} has no command for ${SOURCE}")
endif()

separate_arguments(command UNIX_COMMAND "${command}")
list(FIND command -o index)
math(EXPR object "${index} + 1")
list(REMOVE_AT command ${index} ${object})
execute_process(COMMAND ${command} -fsyntax-only
  WORKING_DIRECTORY "${directory}" RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(result EQUAL 0)
  message(FATAL_ERROR "${SOURCE} compiles; expected an error that matches: ${EXPECTED}")
endif()
if(NOT output MATCHES "${EXPECTED}")
  message("${output}")
  message(FATAL_ERROR "${SOURCE} does not compile, as it should not, but no message (above) matches: ${EXPECTED}")
endif()
string(REGEX MATCHALL "[^\n]*error[^\n]*" errors "${output}")
list(LENGTH errors count)
message("${count} line(s) of errors, among them the one expected: ${CMAKE_MATCH_0}")
