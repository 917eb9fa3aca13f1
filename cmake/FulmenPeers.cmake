# FULMEN_PEERS: the Python frameworks that bench/step.py compares fulmen with, in a folder of their own below FULMEN_DEPS_DIR. No
# Python environment is touched; the Python that installs them (FULMEN_PYTHON) is the one to run bench/step.py with.

include("${CMAKE_CURRENT_LIST_DIR}/FulmenPip.cmake")

option(FULMEN_PEERS "Install the Python peers of bench/step.py, a download of about 3 GB" OFF)

function(fulmen_install_peers dir)
  message(STATUS "Python peers: installing torch, lightning, pytorch-ignite and accelerate from PyPI, a download of about 3 GB, "
    "6 GB on the disk")
  fulmen_pip_install("${dir}"
    "torch==${FULMEN_TORCH_VERSION}" lightning==2.6.6 pytorch-ignite==0.5.5 accelerate==1.15.0)
endfunction()

if(FULMEN_PEERS)
  set(dir "${FULMEN_DEPS_DIR}/peers-${FULMEN_TORCH_VERSION}")
  fulmen_install_once("Python peers" "${dir}" fulmen_install_peers
    "Turn FULMEN_PEERS off, or run bench/step.py --python with a Python that has them.")
  message(STATUS "Python peers: ${dir}")
endif()
