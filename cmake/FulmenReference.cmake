# FULMEN_REFERENCE: the Python libraries that read what fulmen writes (tests labelled `reference`), in a folder of their own below
# FULMEN_DEPS_DIR; or FULMEN_REFERENCE_PYTHON: a Python that has them. No Python environment is touched.

include("${CMAKE_CURRENT_LIST_DIR}/FulmenPip.cmake")

option(FULMEN_REFERENCE "Install PyTorch, Lightning, TensorBoard and others for the tests in which they read what fulmen wrote, a download of about 3 GB" OFF)
set(FULMEN_REFERENCE_PYTHON "" CACHE FILEPATH "A Python with them, in place of FULMEN_REFERENCE")

function(fulmen_install_reference dir)
  message(STATUS "Python references: installing torch, lightning, safetensors, tensorboard, mlflow and wandb from PyPI, a download of "
    "about 3 GB, 7 GB on the disk")
  fulmen_pip_install("${dir}"
    "torch==${FULMEN_TORCH_VERSION}" lightning==2.6.6 pytorch-lightning==2.6.6 safetensors==0.8.0 lion-pytorch==0.2.5
    tensorboard==2.21.0 pillow mlflow-skinny wandb)
endfunction()

set(fulmen_reference_python "${FULMEN_REFERENCE_PYTHON}")
if(FULMEN_REFERENCE AND NOT FULMEN_REFERENCE_PYTHON)
  set(dir "${FULMEN_DEPS_DIR}/reference-${FULMEN_TORCH_VERSION}")
  fulmen_install_once("Python references" "${dir}" fulmen_install_reference
    "Turn FULMEN_REFERENCE off, or set FULMEN_REFERENCE_PYTHON to a Python that has them.")
  set(fulmen_reference_python "${CMAKE_COMMAND}" -E env "PYTHONPATH=${dir}" "${FULMEN_PYTHON}")
endif()
