# What other programs use: libpipedec (static and shared, made of the folders' objects), the header, pipedec.pc,
# the program, profiles and manual pages; and the examples, which are built as a user of the library would.
include(GNUInstallDirs)

# Everything but the benches and the commands is the library.
get_property(all_folders GLOBAL PROPERTY PD_FOLDERS)
set(objects)
set(needs)
foreach(folder ${all_folders})
  if(folder STREQUAL pd_bench OR folder STREQUAL pd_serve)
    continue()
  endif()
  list(APPEND objects $<TARGET_OBJECTS:${folder}>)
  get_target_property(links ${folder} INTERFACE_LINK_LIBRARIES)
  if(links)
    list(APPEND needs ${links})
  endif()
endforeach()
list(FILTER needs EXCLUDE REGEX "pd_[a-z]+")
list(REMOVE_DUPLICATES needs)

if(objects)
  add_library(pipedec_static STATIC ${objects})
  add_library(pipedec_shared SHARED ${objects})
  foreach(kind static shared)
    set_target_properties(pipedec_${kind} PROPERTIES OUTPUT_NAME pipedec LINKER_LANGUAGE C)
    target_include_directories(pipedec_${kind} INTERFACE include)
  endforeach()
  target_link_libraries(pipedec_static INTERFACE ${needs})
  target_link_libraries(pipedec_shared PRIVATE ${needs})
  if(NOT PIPEDEC_SANITIZE AND NOT PIPEDEC_FUZZ)
    target_link_options(pipedec_shared PRIVATE LINKER:-z,defs)
  endif()
  # Only the public names leave the shared library.
  target_link_options(pipedec_shared PRIVATE LINKER:--version-script=${CMAKE_SOURCE_DIR}/cmake/pipedec.map)
  set_target_properties(pipedec_shared PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}
    LINK_DEPENDS ${CMAKE_SOURCE_DIR}/cmake/pipedec.map)
  install(TARGETS pipedec_static pipedec_shared
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})

  file(GLOB example_sources CONFIGURE_DEPENDS examples/*.c)
  foreach(source ${example_sources})
    get_filename_component(name ${source} NAME_WE)
    add_executable(example_${name} ${source})
    target_link_libraries(example_${name} PRIVATE pipedec_shared)
  endforeach()
endif()

# Static linking needs the rest: by pkg-config name where there is one.
set(pc_mpi "")
if(PIPEDEC_MPI AND MPI_C_FOUND)
  string(JOIN " " pc_mpi ${MPI_C_LIBRARIES})
endif()
# The prefix is found from where pipedec.pc lies, so an installed tree may be moved.
file(RELATIVE_PATH pc_up "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
configure_file(cmake/pipedec.pc.in pipedec.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/pipedec.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES include/pipedec.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY profiles/ DESTINATION ${CMAKE_INSTALL_DATADIR}/pipedec/profiles FILES_MATCHING PATTERN "*.ini")
if(TARGET pipedec)
  install(TARGETS pipedec RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

# docs/man/NAME.SECTION.scd -> manual page, where scdoc is present.
find_program(SCDOC scdoc)
file(GLOB man_sources CONFIGURE_DEPENDS docs/man/*.scd)
if(SCDOC AND man_sources)
  set(man_pages)
  foreach(source ${man_sources})
    get_filename_component(page ${source} NAME_WLE)
    string(REGEX MATCH "[0-9]$" section ${page})
    add_custom_command(OUTPUT ${CMAKE_BINARY_DIR}/man/${page}
      COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/man
      COMMAND sh -c "'${SCDOC}' < '${source}' > '${CMAKE_BINARY_DIR}/man/${page}'"
      DEPENDS ${source} VERBATIM)
    list(APPEND man_pages ${CMAKE_BINARY_DIR}/man/${page})
    install(FILES ${CMAKE_BINARY_DIR}/man/${page} DESTINATION ${CMAKE_INSTALL_MANDIR}/man${section})
  endforeach()
  add_custom_target(man ALL DEPENDS ${man_pages})
endif()

# An installed copy compiles and links against its own header, pkg-config file and library.
if(PIPEDEC_TESTS AND TARGET pipedec_shared AND NOT PIPEDEC_SANITIZE AND NOT PIPEDEC_FUZZ)
  enable_testing()
  add_test(NAME install COMMAND bash ${CMAKE_SOURCE_DIR}/scripts/check-install.sh ${CMAKE_BINARY_DIR})
endif()
