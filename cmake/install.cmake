# What `cmake --install` gives: the library with its headers, its CMake package and its pkg-config file, licence and
# docs; cli/ adds the command. The prefix may be moved afterwards: nothing that is installed names it.
include(CMakePackageConfigHelpers)

install(TARGETS nybble EXPORT nybbleTargets)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/nybble)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/nybbleConfig.cmake.in
  ${PROJECT_BINARY_DIR}/package/nybbleConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/package/nybbleConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/package/nybbleConfig.cmake ${PROJECT_BINARY_DIR}/package/nybbleConfigVersion.cmake
  DESTINATION ${package_dir})
install(EXPORT nybbleTargets NAMESPACE nybble:: DESTINATION ${package_dir})

# An absolute folder stays as it is: whoever asks for one does not want to move it.
set(pc_dir ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
foreach(name LIBDIR INCLUDEDIR)
  cmake_path(ABSOLUTE_PATH CMAKE_INSTALL_${name} BASE_DIRECTORY "\${prefix}" OUTPUT_VARIABLE NYBBLE_PC_${name})
endforeach()
cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX BASE_DIRECTORY ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig
  OUTPUT_VARIABLE NYBBLE_PREFIX_FROM_PC)
configure_file(${CMAKE_CURRENT_LIST_DIR}/nybble.pc.in ${PROJECT_BINARY_DIR}/package/nybble.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/package/nybble.pc DESTINATION ${pc_dir})

install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(FILES ${PROJECT_SOURCE_DIR}/README.md DESTINATION ${CMAKE_INSTALL_DOCDIR} OPTIONAL)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/docs ${PROJECT_SOURCE_DIR}/examples DESTINATION ${CMAKE_INSTALL_DOCDIR})
