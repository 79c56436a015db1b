# llama.cpp as a subproject: only what the package needs is built, nothing of it is installed by its own rules.

set(BUILD_SHARED_LIBS      ON  CACHE BOOL "" FORCE)
set(GGML_NATIVE            OFF CACHE BOOL "" FORCE) # wheels move between machines
set(GGML_RPC               ON  CACHE BOOL "" FORCE)
set(GGML_CUDA              ${TURBOPREFILL_CUDA} CACHE BOOL "" FORCE)
set(LLAMA_BUILD_COMMON     OFF CACHE BOOL "" FORCE)
set(LLAMA_BUILD_TESTS      OFF CACHE BOOL "" FORCE)
set(LLAMA_BUILD_TOOLS      OFF CACHE BOOL "" FORCE)
set(LLAMA_BUILD_EXAMPLES   OFF CACHE BOOL "" FORCE)
set(LLAMA_BUILD_SERVER     OFF CACHE BOOL "" FORCE)
set(LLAMA_BUILD_APP        OFF CACHE BOOL "" FORCE)
set(LLAMA_BUILD_UI         OFF CACHE BOOL "" FORCE)
set(LLAMA_OPENSSL          OFF CACHE BOOL "" FORCE)
set(LLAMA_TOOLS_INSTALL    OFF CACHE BOOL "" FORCE)

if (TURBOPREFILL_CUDA AND TURBOPREFILL_CUDA_FOUND AND NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    # One architecture instead of ten: minutes instead of an hour.
    set(CMAKE_CUDA_ARCHITECTURES native)
endif()
if (TURBOPREFILL_NVCC AND NOT CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_COMPILER "${TURBOPREFILL_NVCC}")
endif()

# Assertions print file names: without the folders of the machine that built the wheel.
add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-fmacro-prefix-map=${TURBOPREFILL_TREE}=llama.cpp>")

# Some compilers link a static libstdc++ by default. Exported from our libraries it would mix with that of the process.
if (CMAKE_SYSTEM_NAME STREQUAL "Linux")
    add_link_options(-Wl,--exclude-libs,libstdc++.a)
endif()

add_subdirectory("${TURBOPREFILL_TREE}" "${CMAKE_BINARY_DIR}/llama-build" EXCLUDE_FROM_ALL)
add_subdirectory("${TURBOPREFILL_TREE}/tools/rpc" "${CMAKE_BINARY_DIR}/rpc-build" EXCLUDE_FROM_ALL)

set(TURBOPREFILL_LIBRARIES llama ggml ggml-base ggml-cpu ggml-rpc)
if (TURBOPREFILL_CUDA)
    list(APPEND TURBOPREFILL_LIBRARIES ggml-cuda)
endif()

foreach (target IN LISTS TURBOPREFILL_LIBRARIES)
    # Own names: the dynamic linker would otherwise take a libllama.so that another package loaded first.
    # No versions: a wheel cannot hold the symbolic links that come with them.
    set_target_properties(${target} PROPERTIES OUTPUT_NAME "turboprefill-${target}" INSTALL_RPATH "$ORIGIN")
    set_property(TARGET ${target} PROPERTY VERSION)
    set_property(TARGET ${target} PROPERTY SOVERSION)
    set_property(TARGET ${target} PROPERTY PUBLIC_HEADER)
endforeach()
if (TURBOPREFILL_CUDA)
    # The toolkit's own libraries are found where they were linked, unless the system knows them anyway.
    set_target_properties(ggml-cuda PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
endif()
set_target_properties(ggml-rpc-server PROPERTIES INSTALL_RPATH "$ORIGIN/../lib")
