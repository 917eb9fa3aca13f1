# Finds LibTorch, or installs it from PyPI, and makes the target fulmen::torch.
#
# LibTorch's own package (find_package(Torch)) is not used: that of a CUDA build demands the whole CUDA toolkit, even of a
# program that runs on the CPU.

include("${CMAKE_CURRENT_LIST_DIR}/FulmenPip.cmake")

set(FULMEN_TORCH_MINIMUM 2.9)
set(FULMEN_TORCH_VERSION 2.15.0 CACHE STRING "Version of LibTorch that is installed where none is found")
set(FULMEN_TORCH_DIR "" CACHE PATH "LibTorch to use: the folder that holds its include/ and lib/")
set(FULMEN_CUDA AUTO CACHE STRING "Use LibTorch with CUDA: AUTO (where there is a GPU), ON or OFF")
set_property(CACHE FULMEN_CUDA PROPERTY STRINGS AUTO ON OFF)

# Is there a GPU that its driver answers for?
function(fulmen_find_gpu result)
  find_program(FULMEN_NVIDIA_SMI nvidia-smi)
  mark_as_advanced(FULMEN_NVIDIA_SMI)
  set(found OFF)
  if(FULMEN_NVIDIA_SMI)
    execute_process(COMMAND "${FULMEN_NVIDIA_SMI}" -L OUTPUT_VARIABLE gpus ERROR_QUIET TIMEOUT 60)
    if(gpus MATCHES "GPU 0")
      set(found ON)
    endif()
  endif()
  set(${result} ${found} PARENT_SCOPE)
endfunction()

# The version of the LibTorch whose headers are in `include`; empty if there are none.
function(fulmen_torch_version include result)
  set(version)
  foreach(header torch/headeronly/version.h torch/csrc/api/include/torch/version.h)
    if(EXISTS "${include}/${header}")
      file(STRINGS "${include}/${header}" lines REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH) +[0-9]+")
      list(TRANSFORM lines REPLACE "[^0-9]*([0-9]+).*" "\\1")
      list(JOIN lines "." version)
      if(version)
        break()
      endif()
    endif()
  endforeach()
  set(${result} "${version}" PARENT_SCOPE)
endfunction()

# Installs the wheel of LibTorch and, of the CUDA libraries that it requires, those that are needed: without a GPU only
# the two that libtorch_cpu.so itself is linked to (the CUDA runtime and CUPTI, for its profiler).
function(fulmen_install_torch dir version cuda)
  set(patterns "torch/include/*" "torch/share/cmake/Torch/*" "torch-*.dist-info/*" "torch.libs/*")
  if(cuda)
    list(APPEND patterns "torch/lib/*")
  else()
    # Not libtorch_cuda.so and its like, which are most of the wheel.
    foreach(library c10 torch torch_cpu gomp arm_compute openblas gfortran)
      list(APPEND patterns "torch/lib/lib${library}.*" "torch/lib/lib${library}-*")
    endforeach()
  endif()
  message(STATUS "LibTorch: installing torch ${version} from PyPI, a download of more than 500 MB")
  fulmen_pip_unpack("${dir}" REQUIREMENTS torch==${version} PATTERNS ${patterns})

  file(STRINGS "${dir}/torch-${version}.dist-info/METADATA" lines REGEX "^Requires-Dist: (cuda-toolkit|nvidia-)")
  set(wanted)
  foreach(line IN LISTS lines)
    string(REGEX MATCH "^Requires-Dist: ([^; ]+)" _ "${line}")
    set(requirement "${CMAKE_MATCH_1}")
    string(REGEX MATCH "platform_machine == [\"']([^\"']+)" _ "${line}")
    if(CMAKE_MATCH_1 AND NOT CMAKE_MATCH_1 STREQUAL CMAKE_HOST_SYSTEM_PROCESSOR)
      continue()
    endif()
    if(NOT cuda)
      string(REGEX REPLACE "^cuda-toolkit\\[.*\\]" "cuda-toolkit[cudart,cupti]" requirement "${requirement}")
    endif()
    if(cuda OR requirement MATCHES "^(cuda-toolkit|nvidia-cuda-(runtime|cupti))")
      list(APPEND wanted "${requirement}")
    endif()
  endforeach()
  if(wanted)
    if(cuda)
      message(STATUS "LibTorch: installing the CUDA libraries that it requires, a download of about 2.3 GB")
    endif()
    fulmen_pip_unpack("${dir}" DEPENDENCIES REQUIREMENTS ${wanted} PATTERNS "nvidia/*" "nvidia_*.dist-info/*")
  endif()
endfunction()

# One candidate after another: sets include, library and origin in the caller where the root holds a LibTorch.
macro(fulmen_try_torch root where)
  if(NOT include AND EXISTS "${root}/include")
    fulmen_torch_version("${root}/include" version)
    if(version AND version VERSION_LESS FULMEN_TORCH_MINIMUM)
      message(STATUS "LibTorch: not using ${version} in ${root}, fulmen needs ${FULMEN_TORCH_MINIMUM} or later")
    elseif(version)
      unset(library)
      find_library(library torch_cpu PATHS "${root}/lib" "${root}/lib64" NO_CACHE NO_DEFAULT_PATH)
      if(library)
        set(include "${root}/include")
        set(origin "${where}")
      endif()
    endif()
  endif()
endmacro()

function(fulmen_find_torch)
  if(TARGET fulmen::torch)
    return()
  endif()

  set(cuda ${FULMEN_CUDA})
  if(cuda STREQUAL "AUTO")
    fulmen_find_gpu(cuda)
  endif()

  unset(include)
  if(FULMEN_TORCH_DIR)
    fulmen_try_torch("${FULMEN_TORCH_DIR}" "FULMEN_TORCH_DIR")
    if(NOT include)
      message(FATAL_ERROR "FULMEN_TORCH_DIR is ${FULMEN_TORCH_DIR}: expected a folder with the include/ and lib/ of "
        "LibTorch ${FULMEN_TORCH_MINIMUM} or later")
    endif()
  endif()

  # As find_package(Torch) would: by Torch_DIR or a prefix, among them the one that Python's torch.utils names.
  find_path(root torch/csrc/api/include/torch/version.h NO_CACHE
    HINTS "${Torch_DIR}/../../../include" "$ENV{Torch_DIR}/../../../include"
    PATH_SUFFIXES include ../../include)
  if(root)
    # find_path() leaves a slash at the end, behind which cmake_path would see an empty name.
    string(REGEX REPLACE "/+$" "" root "${root}")
    cmake_path(NORMAL_PATH root)
    cmake_path(GET root PARENT_PATH root)
    fulmen_try_torch("${root}" "found")
  endif()

  find_program(FULMEN_PYTHON NAMES python3 python DOC "Python 3 with pip, used to download from PyPI")
  if(NOT include AND FULMEN_PYTHON)
    execute_process(
      COMMAND "${FULMEN_PYTHON}" -c
        "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
      OUTPUT_VARIABLE root ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
    fulmen_try_torch("${root}" "found, of ${FULMEN_PYTHON}")
  endif()

  if(NOT include)
    set(variant cpu)
    if(cuda)
      set(variant cuda)
    endif()
    set(site "${FULMEN_DEPS_DIR}/torch-${FULMEN_TORCH_VERSION}-${variant}")
    fulmen_install_once("LibTorch" "${site}" fulmen_install_torch
      "Set FULMEN_TORCH_DIR to a LibTorch ${FULMEN_TORCH_MINIMUM} or later." ${FULMEN_TORCH_VERSION} ${cuda})
    fulmen_try_torch("${site}/torch" "installed from PyPI")
    if(NOT include)
      message(FATAL_ERROR "The torch ${FULMEN_TORCH_VERSION} installed in ${site} holds no LibTorch of version "
        "${FULMEN_TORCH_MINIMUM} or later. Remove the folder, or set FULMEN_TORCH_VERSION to a later version.")
    endif()
  endif()

  fulmen_add_torch("${include}" "${library}" "${version}" "${cuda}" "${origin}")
endfunction()

function(fulmen_add_torch include library version cuda origin)
  cmake_path(GET library PARENT_PATH lib)
  cmake_path(GET include PARENT_PATH root)
  find_library(c10 c10 PATHS "${lib}" NO_CACHE NO_DEFAULT_PATH REQUIRED)
  find_library(torch_cuda torch_cuda PATHS "${lib}" NO_CACHE NO_DEFAULT_PATH)
  find_library(c10_cuda c10_cuda PATHS "${lib}" NO_CACHE NO_DEFAULT_PATH)
  if(cuda AND NOT torch_cuda)
    if(NOT FULMEN_CUDA STREQUAL "AUTO")
      message(FATAL_ERROR "FULMEN_CUDA is ${FULMEN_CUDA}, but the LibTorch in ${root} was built without CUDA")
    endif()
    message(STATUS "LibTorch: there is a GPU, but this LibTorch was built without CUDA")
    set(cuda OFF)
  endif()

  add_library(fulmen::torch INTERFACE IMPORTED GLOBAL)
  target_include_directories(fulmen::torch SYSTEM INTERFACE "${include}" "${include}/torch/csrc/api/include")
  target_compile_features(fulmen::torch INTERFACE cxx_std_20)

  # LibTorch before 2.6, and some later builds, have std::string's old ABI. It shows in the names of their functions.
  file(STRINGS "${c10}" old_abi LIMIT_COUNT 1 REGEX "torchCheckFail[A-Za-z0-9]*RKSs")
  if(old_abi)
    target_compile_definitions(fulmen::torch INTERFACE _GLIBCXX_USE_CXX11_ABI=0)
    string(APPEND version ", old C++ ABI")
  endif()

  set(libraries c10 torch_cpu)
  if(cuda)
    list(APPEND libraries c10_cuda torch_cuda)
    # Kernels register themselves when libtorch_cuda.so is loaded; no symbol of it need be used.
    target_link_options(fulmen::torch INTERFACE LINKER:--no-as-needed)
    target_compile_definitions(fulmen::torch INTERFACE FULMEN_CUDA=1)
    file(GLOB toolkit "${root}/../nvidia/cu*/include" "${root}/../nvidia/cuda_runtime/include")
    target_include_directories(fulmen::torch SYSTEM INTERFACE ${toolkit})
  endif()
  set(torch_cpu "${library}")
  foreach(name IN LISTS libraries)
    add_library(fulmen::${name} SHARED IMPORTED GLOBAL)
    set_target_properties(fulmen::${name} PROPERTIES IMPORTED_LOCATION "${${name}}")
  endforeach()
  list(TRANSFORM libraries PREPEND fulmen::)
  list(REVERSE libraries)
  target_link_libraries(fulmen::torch INTERFACE ${libraries})

  set_property(GLOBAL PROPERTY FULMEN_TORCH_ROOT "${root}")

  # A LibTorch whose own dependencies are missing would fail later, at the first link, with a thousand lines.
  if(NOT FULMEN_TORCH_LINKED STREQUAL "${library}")
    try_compile(linked SOURCE_FROM_CONTENT main.cpp "int main() {}" NO_CACHE
      LINK_OPTIONS LINKER:--no-as-needed LINK_LIBRARIES fulmen::torch OUTPUT_VARIABLE output)
    if(NOT linked)
      message(FATAL_ERROR "LibTorch: a program cannot be linked to ${library} (${origin}); are the libraries that it "
        "needs installed? Set FULMEN_TORCH_DIR to another LibTorch if not.\n${output}")
    endif()
    set(FULMEN_TORCH_LINKED "${library}" CACHE INTERNAL "The LibTorch that a program was linked to")
  endif()

  set(variant "CPU")
  if(cuda)
    set(variant "CUDA")
  endif()
  message(STATUS "LibTorch: ${version}, ${variant}, ${origin}: ${root}")
endfunction()

fulmen_find_torch()
