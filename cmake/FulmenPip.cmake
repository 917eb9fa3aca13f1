# Brings packages from PyPI into a folder, without touching any Python environment: pip only downloads, CMake unpacks.
# So neither venv, nor root, nor leave from an "externally managed" Python (PEP 668) is needed.

# fulmen_install_once(<name> <dir> <function> <hint> <args>...)
#
# Makes <dir> by <function>(<staging dir> <args>...), once. The folder appears by a rename when it is complete, so an
# interrupted install is never taken for a good one; the lock makes a second configure wait for the first.
# <hint> says, in errors, what to do instead.
function(fulmen_install_once name dir function hint)
  if(EXISTS "${dir}")
    return()
  endif()
  if(NOT FULMEN_INSTALL_DEPENDENCIES)
    message(FATAL_ERROR "${name}: not found, and FULMEN_INSTALL_DEPENDENCIES is ${FULMEN_INSTALL_DEPENDENCIES}. ${hint}")
  endif()
  cmake_path(GET dir PARENT_PATH parent)
  file(MAKE_DIRECTORY "${parent}")
  file(LOCK "${dir}.lock" GUARD FUNCTION TIMEOUT 1800 RESULT_VARIABLE locked)
  if(NOT locked STREQUAL "0")
    message(FATAL_ERROR "${name}: cannot lock ${dir}.lock: ${locked}. FULMEN_DEPS_DIR must be a folder that can be "
      "written to.")
  endif()
  if(NOT EXISTS "${dir}")
    file(REMOVE_RECURSE "${dir}.partial")
    file(MAKE_DIRECTORY "${dir}.partial")
    cmake_language(CALL ${function} "${dir}.partial" ${ARGN})
    file(RENAME "${dir}.partial" "${dir}")
  endif()
endfunction()

# fulmen_pip_install(<dir> <requirement>...)
#
# Has pip install Python packages with what they require into <dir>, for PYTHONPATH. Called by the functions that
# fulmen_install_once calls.
function(fulmen_pip_install dir)
  find_program(FULMEN_PYTHON NAMES python3 python DOC "Python 3 with pip, used to download from PyPI")
  # pip's scratch files go beside the result: /tmp may be too small.
  file(MAKE_DIRECTORY "${dir}/.tmp")
  execute_process(
    COMMAND "${CMAKE_COMMAND}" -E env "TMPDIR=${dir}/.tmp" PIP_REQUIRE_VIRTUALENV=0
      "${FULMEN_PYTHON}" -m pip install --disable-pip-version-check --no-cache-dir --target "${dir}" ${ARGN}
    RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${name}: '${FULMEN_PYTHON} -m pip install' could not install them. ${hint}")
  endif()
  file(REMOVE_RECURSE "${dir}/.tmp")
endfunction()

# fulmen_pip_unpack(<dir> REQUIREMENTS <line>... [PATTERNS <glob>...] [DEPENDENCIES] [SOURCE])
#
# Downloads what the requirement lines name (pip's syntax; a line may carry --hash) and unpacks what matches the
# patterns into <dir>. DEPENDENCIES: with what they require. SOURCE: source archives in place of wheels.
# Called by the functions that fulmen_install_once calls.
function(fulmen_pip_unpack dir)
  cmake_parse_arguments(PARSE_ARGV 1 arg "DEPENDENCIES;SOURCE" "" "REQUIREMENTS;PATTERNS")
  find_program(FULMEN_PYTHON NAMES python3 python DOC "Python 3 with pip, used to download from PyPI")
  execute_process(COMMAND "${FULMEN_PYTHON}" -m pip --version RESULT_VARIABLE result OUTPUT_QUIET ERROR_QUIET)
  if(NOT FULMEN_PYTHON OR NOT result EQUAL 0)
    message(FATAL_ERROR "${name}: not found, and to install it Python 3 with pip is needed (FULMEN_PYTHON is "
      "'${FULMEN_PYTHON}'). On Debian or Ubuntu: apt install python3-pip. ${hint}")
  endif()

  set(download "${dir}/.download")
  file(MAKE_DIRECTORY "${download}/tmp")
  list(JOIN arg_REQUIREMENTS "\n" lines)
  file(WRITE "${download}/requirements.txt" "${lines}\n")

  set(options --disable-pip-version-check --dest "${download}/files" --requirement "${download}/requirements.txt")
  if(NOT arg_DEPENDENCIES)
    list(APPEND options --no-deps)
  endif()
  if(arg_SOURCE)
    list(TRANSFORM arg_REQUIREMENTS REPLACE "^([A-Za-z0-9-]+).*" "--no-binary=\\1" OUTPUT_VARIABLE no_binary)
    list(APPEND options ${no_binary})
  else()
    # Only C++ headers and libraries are wanted, so the wheels' Python need not be the one that runs pip: any will do.
    list(APPEND options --only-binary=:all: --implementation=cp --python-version=3.12 --abi=cp312)
    if(CMAKE_HOST_SYSTEM_NAME STREQUAL "Linux")
      foreach(glibc RANGE 17 28)
        list(APPEND options --platform=manylinux_2_${glibc}_${CMAKE_HOST_SYSTEM_PROCESSOR})
      endforeach()
      list(APPEND options --platform=manylinux2014_${CMAKE_HOST_SYSTEM_PROCESSOR})
    endif()
  endif()
  # pip's scratch files go beside the result: /tmp may be too small for LibTorch.
  execute_process(
    COMMAND "${CMAKE_COMMAND}" -E env "TMPDIR=${download}/tmp" PIP_REQUIRE_VIRTUALENV=0
      "${FULMEN_PYTHON}" -m pip download ${options}
    RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${name}: not found, and pip could not download ${arg_REQUIREMENTS}. ${hint}")
  endif()

  file(GLOB archives "${download}/files/*")
  foreach(archive IN LISTS archives)
    # To unpack, a pattern that matches nothing is an error; here it is not, so leave those out.
    execute_process(COMMAND "${CMAKE_COMMAND}" -E tar tf "${archive}" OUTPUT_VARIABLE names COMMAND_ERROR_IS_FATAL ANY)
    set(patterns)
    foreach(pattern IN LISTS arg_PATTERNS)
      string(REPLACE "." "\\." regex "${pattern}")
      string(REPLACE "*" ".*" regex "${regex}")
      if("\n${names}" MATCHES "\n${regex}\n")
        list(APPEND patterns "${pattern}")
      endif()
    endforeach()
    if(patterns)
      file(ARCHIVE_EXTRACT INPUT "${archive}" DESTINATION "${dir}" PATTERNS ${patterns})
    endif()
  endforeach()
  file(REMOVE_RECURSE "${download}")
endfunction()
