# A second CUDA module without peer copies, for little more than one compilation: only ggml-cuda.cu looks at
# GGML_CUDA_NO_PEER_COPY, so all other objects are those of the first module.
# Included at the end of upstream's ggml-cuda/CMakeLists.txt, in the copy of the tree that the modules are built from.

add_library(ggml-cuda-nopeer MODULE ggml-cuda.cu $<FILTER:$<TARGET_OBJECTS:ggml-cuda>,EXCLUDE,/ggml-cuda\\.cu\\.o$>)
foreach(property COMPILE_DEFINITIONS COMPILE_OPTIONS INCLUDE_DIRECTORIES LINK_LIBRARIES LIBRARY_OUTPUT_DIRECTORY)
    get_target_property(value ggml-cuda ${property})
    if (value)
        set_property(TARGET ggml-cuda-nopeer PROPERTY ${property} ${value})
    endif()
endforeach()
target_compile_definitions(ggml-cuda-nopeer PRIVATE GGML_CUDA_NO_PEER_COPY)
