# Options that may come from the environment, because `pip install .` has no other convenient way in.

function(turboprefill_option name default)
    if (NOT DEFINED ${name} AND DEFINED ENV{${name}} AND NOT "$ENV{${name}}" STREQUAL "")
        set(${name} "$ENV{${name}}" PARENT_SCOPE)
    elseif (NOT DEFINED ${name})
        set(${name} "${default}" PARENT_SCOPE)
    endif()
endfunction()

# CUDA needs the compiler and a GPU: a toolkit alone often means a login node or a container without a driver.
function(turboprefill_detect_cuda result)
    set(${result} OFF PARENT_SCOPE)
    find_program(TURBOPREFILL_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
    find_program(TURBOPREFILL_NVIDIA_SMI nvidia-smi)
    if (TURBOPREFILL_NVCC AND TURBOPREFILL_NVIDIA_SMI)
        execute_process(COMMAND "${TURBOPREFILL_NVIDIA_SMI}" -L
            OUTPUT_VARIABLE gpus ERROR_QUIET RESULT_VARIABLE status)
        if (status EQUAL 0 AND gpus MATCHES "GPU [0-9]+:")
            set(${result} ON PARENT_SCOPE)
        endif()
    endif()
endfunction()

turboprefill_detect_cuda(TURBOPREFILL_CUDA_FOUND)
turboprefill_option(TURBOPREFILL_CUDA "${TURBOPREFILL_CUDA_FOUND}")
turboprefill_option(TURBOPREFILL_SOURCE "")
turboprefill_option(TURBOPREFILL_LLAMA_DIR "")
message(STATUS "TurboPrefill: CUDA ${TURBOPREFILL_CUDA}")
