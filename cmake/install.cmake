# SPDX-License-Identifier: MIT
# What `cmake --install` puts where: both libraries, the public headers, the command with its pages, and the files by
# which pkg-config and find_package(pfx) find them.
include(CMakePackageConfigHelpers)

install(TARGETS pfx_internal pfx_shared LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(EXISTS ${CMAKE_SOURCE_DIR}/include/pfx)
  install(DIRECTORY include/pfx DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
endif()
if(TARGET pfx)
  install(TARGETS pfx RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/share)
  install(DIRECTORY ${CMAKE_BINARY_DIR}/share/ DESTINATION ${CMAKE_INSTALL_DATADIR})
endif()
install(FILES README.md CHANGELOG.md LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(PFX_DNNL_FLAG)
if(PFX_ONEDNN)
  set(PFX_DNNL_FLAG -ldnnl)
endif()
# What libpfx.a needs, as flags: naming the packages (Requires.private) would have a static link ask for what they are
# made of themselves (libcrypto's -lz and -lzstd), and a shared one for their headers.
set(flags ${JANSSON_LDFLAGS} ${PCRE2_LDFLAGS} ${UTF8PROC_LDFLAGS} ${CRYPTO_LDFLAGS})
list(REMOVE_DUPLICATES flags)
list(JOIN flags " " PFX_PC_LIBRARIES)
file(RELATIVE_PATH PFX_PC_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /) # relative, so that the installed tree can move
configure_file(cmake/pfx.pc.in pfx.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/pfx.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

set(PFX_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/pfx)
configure_package_config_file(cmake/pfxConfig.cmake.in pfxConfig.cmake INSTALL_DESTINATION ${PFX_CMAKE_DIR}
                              PATH_VARS CMAKE_INSTALL_INCLUDEDIR CMAKE_INSTALL_LIBDIR)
write_basic_package_version_file(pfxConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/pfxConfig.cmake ${CMAKE_BINARY_DIR}/pfxConfigVersion.cmake
        DESTINATION ${PFX_CMAKE_DIR})
