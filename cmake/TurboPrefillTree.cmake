# Sets TURBOPREFILL_TREE to a llama.cpp tree that carries the overlay.

if (TURBOPREFILL_LLAMA_DIR)
    get_filename_component(TURBOPREFILL_TREE "${TURBOPREFILL_LLAMA_DIR}" ABSOLUTE)
else()
    set(TURBOPREFILL_TREE "${CMAKE_BINARY_DIR}/llama.cpp")
    set(source_args)
    if (TURBOPREFILL_SOURCE)
        set(source_args --from "${TURBOPREFILL_SOURCE}")
    endif()
    # pip's build isolation lives in PYTHONPATH: prepend, do not replace.
    execute_process(
        COMMAND "${CMAKE_COMMAND}" -E env "PYTHONPATH=${CMAKE_CURRENT_SOURCE_DIR}/src:$ENV{PYTHONPATH}"
            "${Python_EXECUTABLE}" -m turboprefill prepare-tree "${TURBOPREFILL_TREE}" ${source_args}
        RESULT_VARIABLE status)
    if (NOT status EQUAL 0)
        message(FATAL_ERROR
            "TurboPrefill: preparing the llama.cpp tree failed (exit status ${status}, see above). "
            "Without network access, set TURBOPREFILL_SOURCE to a llama.cpp checkout of the pinned commit.")
    endif()
    # A changed overlay must reach the tree, so it makes the build configure again.
    file(GLOB_RECURSE overlay_files CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/overlay/*")
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
        ${overlay_files} "${CMAKE_CURRENT_SOURCE_DIR}/src/turboprefill/pins.json")
endif()

if (NOT EXISTS "${TURBOPREFILL_TREE}/include/turboprefill.h")
    message(FATAL_ERROR
        "TurboPrefill: ${TURBOPREFILL_TREE} has no include/turboprefill.h, so it does not carry the overlay. "
        "Run `turboprefill install ${TURBOPREFILL_TREE}` first, or unset TURBOPREFILL_LLAMA_DIR.")
endif()
message(STATUS "TurboPrefill: llama.cpp tree ${TURBOPREFILL_TREE}")
