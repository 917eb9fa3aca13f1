# For programs that are compiled often: fulmen::compiled, fulmen's functions that are no templates in a library, and
# fulmen::pch, that library and the headers precompiled. In fulmen's own build and in its package.

# Made in the build that uses it, with that build's compiler and options.
add_library(fulmen_compiled STATIC EXCLUDE_FROM_ALL "${CMAKE_CURRENT_LIST_DIR}/compiled.cpp")
add_library(fulmen::compiled ALIAS fulmen_compiled)
target_link_libraries(fulmen_compiled PUBLIC fulmen::fulmen)
target_compile_definitions(fulmen_compiled PUBLIC FULMEN_COMPILED PRIVATE FULMEN_COMPILING)

add_library(fulmen_precompiled INTERFACE)
add_library(fulmen::pch ALIAS fulmen_precompiled)
target_link_libraries(fulmen_precompiled INTERFACE fulmen_compiled)
target_precompile_headers(fulmen_precompiled INTERFACE <torch/torch.h> <fulmen/fulmen.hpp>)
