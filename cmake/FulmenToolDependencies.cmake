# What fulmen's own tests, benchmarks and examples need beyond the library; by the rules of FulmenDependencies.cmake.

function(fulmen_install_gtest dir)
  message(STATUS "GoogleTest: installing ros-gtest-vendor 1.15.1 (its sources) from PyPI, a download of 0.3 MB")
  fulmen_pip_unpack("${dir}" REQUIREMENTS ros-gtest-vendor==1.15.1 PATTERNS "*/data/src/*" "*.dist-info/*")
endfunction()

# Makes fulmen::gtest_main.
function(fulmen_find_gtest)
  add_library(fulmen::gtest_main INTERFACE IMPORTED GLOBAL)
  find_package(GTest 1.11 QUIET CONFIG)
  if(GTest_FOUND)
    target_link_libraries(fulmen::gtest_main INTERFACE GTest::gtest_main)
    message(STATUS "GoogleTest: ${GTest_VERSION}, found: ${GTest_DIR}")
    return()
  endif()
  set(dir "${FULMEN_DEPS_DIR}/gtest-1.15.1")
  fulmen_install_once("GoogleTest" "${dir}" fulmen_install_gtest
    "On Debian or Ubuntu: apt install libgtest-dev. Or turn FULMEN_BUILD_TESTS off.")
  set(source "${dir}/ros_gtest_vendor-1.15.1.data/data/src/gtest_vendor")
  find_package(Threads REQUIRED)
  add_library(fulmen_gtest STATIC EXCLUDE_FROM_ALL "${source}/src/gtest-all.cc" "${source}/src/gtest_main.cc")
  target_include_directories(fulmen_gtest SYSTEM PUBLIC "${source}/include" PRIVATE "${source}")
  target_compile_features(fulmen_gtest PUBLIC cxx_std_20)
  target_link_libraries(fulmen_gtest PUBLIC Threads::Threads)
  target_link_libraries(fulmen::gtest_main INTERFACE fulmen_gtest)
  message(STATUS "GoogleTest: 1.15.1, installed from PyPI: ${source}")
endfunction()

function(fulmen_install_benchmark dir)
  message(STATUS "Google Benchmark: installing the 1.8.0 in onnx 1.16.0's sources from PyPI, a download of 12 MB")
  fulmen_pip_unpack("${dir}" SOURCE
    REQUIREMENTS "onnx==1.16.0 --hash=sha256:237c6987c6c59d9f44b6136f5819af79574f8d96a760a1fa843bede11f3822f7"
    PATTERNS "onnx-1.16.0/third_party/benchmark/include/*" "onnx-1.16.0/third_party/benchmark/src/*"
      onnx-1.16.0/third_party/benchmark/LICENSE)
endfunction()

# Makes fulmen::benchmark_main.
function(fulmen_find_benchmark)
  add_library(fulmen::benchmark_main INTERFACE IMPORTED GLOBAL)
  find_package(benchmark 1.6 QUIET CONFIG)
  if(benchmark_FOUND)
    target_link_libraries(fulmen::benchmark_main INTERFACE benchmark::benchmark_main)
    message(STATUS "Google Benchmark: ${benchmark_VERSION}, found: ${benchmark_DIR}")
    return()
  endif()
  set(dir "${FULMEN_DEPS_DIR}/benchmark-1.8.0")
  fulmen_install_once("Google Benchmark" "${dir}" fulmen_install_benchmark
    "On Debian or Ubuntu: apt install libbenchmark-dev. Or turn FULMEN_BUILD_BENCH off.")
  set(source "${dir}/onnx-1.16.0/third_party/benchmark")
  file(GLOB sources "${source}/src/*.cc")
  find_package(Threads REQUIRED)
  add_library(fulmen_benchmark STATIC EXCLUDE_FROM_ALL ${sources})
  target_include_directories(fulmen_benchmark SYSTEM PUBLIC "${source}/include")
  target_compile_features(fulmen_benchmark PUBLIC cxx_std_20)
  target_compile_definitions(fulmen_benchmark PUBLIC BENCHMARK_STATIC_DEFINE PRIVATE HAVE_STD_REGEX HAVE_STEADY_CLOCK)
  target_link_libraries(fulmen_benchmark PUBLIC Threads::Threads)
  target_link_libraries(fulmen::benchmark_main INTERFACE fulmen_benchmark)
  message(STATUS "Google Benchmark: 1.8.0, installed from PyPI: ${source}")
endfunction()

function(fulmen_install_cli11 dir)
  message(STATUS "CLI11: installing the 2.5.0 in highspy 1.15.1's sources from PyPI, a download of 1.7 MB")
  fulmen_pip_unpack("${dir}" SOURCE
    REQUIREMENTS "highspy==1.15.1 --hash=sha256:20ed2fbf1cb64bf3044ee6632364b7e2653d93e6901e2b19fd3d5df10702e8c5"
    PATTERNS highspy-1.15.1/extern/cli11/CLI11.hpp) # its licence is at the head of the file
  file(MAKE_DIRECTORY "${dir}/include/CLI")
  file(RENAME "${dir}/highspy-1.15.1/extern/cli11/CLI11.hpp" "${dir}/include/CLI/CLI.hpp")
  file(REMOVE_RECURSE "${dir}/highspy-1.15.1")
endfunction()

# Makes fulmen::cli11, for <CLI/CLI.hpp>.
function(fulmen_find_cli11)
  add_library(fulmen::cli11 INTERFACE IMPORTED GLOBAL)
  find_package(CLI11 2 QUIET CONFIG)
  if(CLI11_FOUND)
    target_link_libraries(fulmen::cli11 INTERFACE CLI11::CLI11)
    message(STATUS "CLI11: ${CLI11_VERSION}, found: ${CLI11_DIR}")
    return()
  endif()
  set(dir "${FULMEN_DEPS_DIR}/cli11-2.5.0")
  fulmen_install_once("CLI11" "${dir}" fulmen_install_cli11
    "On Debian or Ubuntu: apt install libcli11-dev. Or turn FULMEN_BUILD_EXAMPLES off.")
  target_include_directories(fulmen::cli11 SYSTEM INTERFACE "${dir}/include")
  message(STATUS "CLI11: 2.5.0, installed from PyPI: ${dir}")
endfunction()

function(fulmen_install_json dir)
  message(STATUS "JSON for Modern C++: installing nlohmann-json 3.12.0 from PyPI, a download of 0.2 MB")
  fulmen_pip_unpack("${dir}"
    REQUIREMENTS "nlohmann-json==3.12.0 --hash=sha256:5f6132720fb25d0d70bf0742f8397b49a540dcc193e7312a914f6aa49f054810"
    PATTERNS "nlohmann_json/include/*" "*.dist-info/*")
endfunction()

# Makes fulmen::json, for <nlohmann/json.hpp>.
function(fulmen_find_json)
  add_library(fulmen::json INTERFACE IMPORTED GLOBAL)
  find_package(nlohmann_json 3.10 QUIET CONFIG)
  if(nlohmann_json_FOUND)
    target_link_libraries(fulmen::json INTERFACE nlohmann_json::nlohmann_json)
    message(STATUS "JSON for Modern C++: ${nlohmann_json_VERSION}, found: ${nlohmann_json_DIR}")
    return()
  endif()
  set(dir "${FULMEN_DEPS_DIR}/json-3.12.0")
  fulmen_install_once("JSON for Modern C++" "${dir}" fulmen_install_json
    "On Debian or Ubuntu: apt install nlohmann-json3-dev. Or turn FULMEN_BUILD_TESTS off.")
  target_include_directories(fulmen::json SYSTEM INTERFACE "${dir}/nlohmann_json/include")
  message(STATUS "JSON for Modern C++: 3.12.0, installed from PyPI: ${dir}")
endfunction()
