# cmake -DCOMMANDS=<compile_commands.json> -DSOURCE=<file> -DEXPECTED=<regex> [-DANYWHERE=ON] -P CompileFail.cmake
#
# Compiles the source as the build would, up to the checks of its syntax and types. Succeeds only if the compiler
# fails and says what is expected, in the line of its only error: what follows from a mistake must not hide it.
# With ANYWHERE, any line of its output will do.

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
string(REPLACE ";" "," output "${output}") # else one message would be several elements of the list
string(REGEX MATCHALL "[^\n]*error: [^\n]*" errors "${output}")
list(LENGTH errors count)
set(searched "${output}")
if(NOT ANYWHERE)
  string(REGEX MATCH "[^\n]*error: [^\n]*" searched "${output}")
endif()
if(NOT searched MATCHES "${EXPECTED}")
  message("${output}")
  message(FATAL_ERROR "${SOURCE} does not compile, but its first error (above) does not match: ${EXPECTED}")
endif()
set(match "${CMAKE_MATCH_0}")
if(count GREATER 1 AND NOT ANYWHERE)
  message("${output}")
  message(FATAL_ERROR "${SOURCE} gives ${count} errors (above), expected one: ${match}")
endif()
message("As expected: ${match}")
