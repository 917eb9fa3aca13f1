# What fulmen's own programs share, and no consumer sees: warnings, and a precompiled <torch/torch.h>.

include("${CMAKE_CURRENT_LIST_DIR}/FulmenToolDependencies.cmake")

set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

add_library(fulmen_warnings INTERFACE)
target_compile_options(fulmen_warnings INTERFACE -Wall -Wextra -Wpedantic -Werror)

# The tests are many programs, for which the library is compiled once; the demo and the benchmarks are few, and header-only.
if(FULMEN_BUILD_TESTS)
  set(fulmen_of_programs fulmen::compiled)
else()
  set(fulmen_of_programs fulmen::fulmen)
endif()
target_link_libraries(fulmen_compiled PRIVATE "$<BUILD_INTERFACE:fulmen_warnings>")

# <torch/torch.h> takes some 15 s to compile; precompiled, 1 s. Programs must be compiled with the options that it was
# compiled with, so all get theirs here.
add_library(fulmen_pch OBJECT "${CMAKE_CURRENT_LIST_DIR}/pch.cpp")
target_link_libraries(fulmen_pch PUBLIC ${fulmen_of_programs} fulmen_warnings)
target_precompile_headers(fulmen_pch PRIVATE <torch/torch.h> <boost/hana.hpp> <fmt/format.h>)

function(fulmen_executable name)
  add_executable(${name} ${ARGN})
  target_link_libraries(${name} PRIVATE ${fulmen_of_programs} fulmen_warnings)
  target_precompile_headers(${name} REUSE_FROM fulmen_pch)
endfunction()
