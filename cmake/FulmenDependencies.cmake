# What fulmen needs, one rule for each: what is found on the system is used; else it is brought into FULMEN_DEPS_DIR from
# PyPI; else one error names what to install. The exported package runs the same rules in the consumer's build.

include_guard(GLOBAL)

option(FULMEN_INSTALL_DEPENDENCIES "Install dependencies that are not found into FULMEN_DEPS_DIR" ON)
option(FULMEN_WITH_ZLIB "Read gzip files, write PNG images" ON)
set(deps_dir "${CMAKE_BINARY_DIR}/_fulmen_deps")
if(fulmen_IS_TOP_LEVEL)
  set(deps_dir "${fulmen_SOURCE_DIR}/build/deps") # shared by the build trees of all presets
endif()
set(FULMEN_DEPS_DIR "${deps_dir}" CACHE PATH "Where dependencies are installed")
unset(deps_dir)

include("${CMAKE_CURRENT_LIST_DIR}/FulmenPip.cmake")
include("${CMAKE_CURRENT_LIST_DIR}/FulmenTorch.cmake")

# {fmt}: the headers beside LibTorch's own. Another {fmt} on the same include path would be mixed with them.
function(fulmen_find_fmt)
  get_target_property(include fulmen::torch INTERFACE_INCLUDE_DIRECTORIES)
  list(GET include 0 include)
  add_library(fulmen::fmt INTERFACE IMPORTED GLOBAL)
  if(EXISTS "${include}/fmt/format.h")
    target_compile_definitions(fulmen::fmt INTERFACE FMT_HEADER_ONLY=1)
    target_link_libraries(fulmen::fmt INTERFACE fulmen::torch)
    message(STATUS "{fmt}: found, of LibTorch: ${include}/fmt")
  else()
    find_package(fmt 11 QUIET CONFIG)
    if(NOT fmt_FOUND)
      message(FATAL_ERROR "No {fmt}: neither in ${include}/fmt nor on the system. "
        "Install {fmt} 11 or newer with its CMake package")
    endif()
    target_link_libraries(fulmen::fmt INTERFACE fmt::fmt-header-only)
    message(STATUS "{fmt}: ${fmt_VERSION}, found: ${fmt_DIR}")
  endif()
endfunction()

function(fulmen_install_hana dir)
  message(STATUS "Boost.Hana: installing boost-headers 1.85.0 from PyPI, a download of 27 MB")
  fulmen_pip_unpack("${dir}"
    REQUIREMENTS "boost-headers==1.85.0.post1 \
--hash=sha256:4510a571d3bf6c5e913b31d2a9b2441ee79f883ae42d42a5882dd1da46b35e7f"
    PATTERNS boost_headers/include/boost/version.hpp boost_headers/include/boost/hana.hpp
      "boost_headers/include/boost/hana/*" "*.dist-info/*")
endfunction()

function(fulmen_find_hana)
  set(origin found)
  find_path(include boost/hana.hpp NO_CACHE HINTS "${BOOST_ROOT}" "$ENV{BOOST_ROOT}" PATH_SUFFIXES include)
  if(NOT include)
    set(dir "${FULMEN_DEPS_DIR}/boost-headers-1.85.0")
    fulmen_install_once("Boost.Hana" "${dir}" fulmen_install_hana
      "On Debian or Ubuntu: apt install libboost-dev. Elsewhere set BOOST_ROOT.")
    set(include "${dir}/boost_headers/include")
    set(origin "installed from PyPI")
  endif()
  file(STRINGS "${include}/boost/version.hpp" version REGEX "define BOOST_LIB_VERSION")
  string(REGEX REPLACE ".*\"([0-9]+)_([0-9]+).*" "\\1.\\2" version "${version}")
  if(version VERSION_LESS 1.74)
    message(FATAL_ERROR "Boost.Hana: Boost is ${version} in ${include}, fulmen needs 1.74 or later. Set BOOST_ROOT.")
  endif()
  add_library(fulmen::hana INTERFACE IMPORTED GLOBAL)
  target_include_directories(fulmen::hana SYSTEM INTERFACE "${include}")
  message(STATUS "Boost.Hana: of Boost ${version}, ${origin}: ${include}")
endfunction()

function(fulmen_install_zlib dir)
  message(STATUS "zlib: installing cmeel-zlib 1.3.2 from PyPI, a download of 1 MB")
  fulmen_pip_unpack("${dir}"
    REQUIREMENTS "cmeel-zlib==1.3.2 \
--hash=sha256:4658000c5531273d14ca8f0250abcd2a2ad85b336f10a273a77ecb38611a5f5a \
--hash=sha256:3b07fb7e28aaa917e6accb59a29dd0f5c1d272d42988f32ba2c232f5f455be4c"
    PATTERNS "cmeel.prefix/include/*" "*/libz.so.1" "*/LICENSE")
endfunction()

function(fulmen_find_zlib)
  add_library(fulmen::zlib INTERFACE IMPORTED GLOBAL)
  if(NOT FULMEN_WITH_ZLIB)
    message(STATUS "zlib: not used, FULMEN_WITH_ZLIB is ${FULMEN_WITH_ZLIB}")
    return()
  endif()
  target_compile_definitions(fulmen::zlib INTERFACE FULMEN_WITH_ZLIB=1)
  find_package(ZLIB QUIET)
  if(ZLIB_FOUND)
    target_include_directories(fulmen::zlib SYSTEM INTERFACE "${ZLIB_INCLUDE_DIRS}")
    target_link_libraries(fulmen::zlib INTERFACE ${ZLIB_LIBRARIES})
    message(STATUS "zlib: ${ZLIB_VERSION_STRING}, found: ${ZLIB_LIBRARIES}")
    return()
  endif()
  set(dir "${FULMEN_DEPS_DIR}/zlib-1.3.2")
  fulmen_install_once("zlib" "${dir}" fulmen_install_zlib
    "On Debian or Ubuntu: apt install zlib1g-dev. Or turn FULMEN_WITH_ZLIB off, and go without gzip files and images in logs.")
  # The shared one: the wheel's libz.a is not fit for position-independent programs.
  find_library(library NAMES libz.so.1 PATHS "${dir}/cmeel.prefix/lib64" "${dir}/cmeel.prefix/lib"
    NO_CACHE NO_DEFAULT_PATH REQUIRED)
  target_include_directories(fulmen::zlib SYSTEM INTERFACE "${dir}/cmeel.prefix/include")
  target_link_libraries(fulmen::zlib INTERFACE "${library}")
  message(STATUS "zlib: 1.3.2, installed from PyPI: ${library}")
endfunction()

fulmen_find_fmt()
fulmen_find_hana()
fulmen_find_zlib()
