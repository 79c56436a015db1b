# What goes into the wheel, beside the Python files.

add_custom_target(turboprefill_package DEPENDS _core ggml-rpc-server turboprefill-virtual ${TURBOPREFILL_LIBRARIES})

install(TARGETS _core                     LIBRARY DESTINATION turboprefill     COMPONENT turboprefill)
install(TARGETS ${TURBOPREFILL_LIBRARIES} LIBRARY DESTINATION turboprefill/lib COMPONENT turboprefill)
install(TARGETS turboprefill-virtual     LIBRARY DESTINATION turboprefill/lib COMPONENT turboprefill)
install(TARGETS ggml-rpc-server           RUNTIME DESTINATION turboprefill/bin COMPONENT turboprefill)

if (EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/overlay")
    install(DIRECTORY overlay/ DESTINATION turboprefill/overlay COMPONENT turboprefill)
endif()
