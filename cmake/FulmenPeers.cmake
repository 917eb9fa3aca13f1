# FULMEN_PEERS: the Python frameworks that bench/step.py compares fulmen with, in a folder of their own below FULMEN_DEPS_DIR. No
# Python environment is touched; the Python that installs them (FULMEN_PYTHON) is the one to run bench/step.py with.

include("${CMAKE_CURRENT_LIST_DIR}/FulmenPip.cmake")

option(FULMEN_PEERS "Install the Python peers of bench/step.py, a download of about 3 GB" OFF)

function(fulmen_install_peers dir)
  find_program(FULMEN_PYTHON NAMES python3 python DOC "Python 3 with pip, used to download from PyPI")
  message(STATUS "Python peers: installing torch, lightning, pytorch-ignite and accelerate from PyPI, a download of about 3 GB, "
    "6 GB on the disk")
  # pip's scratch files go beside the result: /tmp may be too small.
  file(MAKE_DIRECTORY "${dir}/.tmp")
  execute_process(
    COMMAND "${CMAKE_COMMAND}" -E env "TMPDIR=${dir}/.tmp" PIP_REQUIRE_VIRTUALENV=0
      "${FULMEN_PYTHON}" -m pip install --disable-pip-version-check --no-cache-dir --target "${dir}"
      "torch==${FULMEN_TORCH_VERSION}" lightning==2.6.6 pytorch-ignite==0.5.5 accelerate==1.15.0
    RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "Python peers: '${FULMEN_PYTHON} -m pip install' could not install them. ${hint}")
  endif()
  file(REMOVE_RECURSE "${dir}/.tmp")
endfunction()

if(FULMEN_PEERS)
  set(dir "${FULMEN_DEPS_DIR}/peers-${FULMEN_TORCH_VERSION}")
  fulmen_install_once("Python peers" "${dir}" fulmen_install_peers
    "Turn FULMEN_PEERS off, or run bench/step.py --python with a Python that has them.")
  message(STATUS "Python peers: ${dir}")
endif()
