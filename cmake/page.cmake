# The server's web page (src/serve/page/*) becomes part of the program. A string literal has a bounded length, so each file
# is an array of bytes.
file(GLOB page_sources CONFIGURE_DEPENDS src/serve/page/*)
set(page_type_html "text/html")
set(page_type_css "text/css")
set(page_type_js "text/javascript")
set(page_type_svg "image/svg+xml")
set(page_arrays)
set(page_table)
set(number 0)
foreach(source ${page_sources})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${source})
  get_filename_component(name ${source} NAME)
  get_filename_component(extension ${source} LAST_EXT)
  string(SUBSTRING "${extension}" 1 -1 extension)
  set(type ${page_type_${extension}})
  if(NOT type)
    message(FATAL_ERROR "${source}: what type is that? (cmake/page.cmake)")
  endif()
  file(SHA256 ${source} sum)
  string(SUBSTRING ${sum} 0 16 sum)
  file(READ ${source} bytes HEX)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
  string(REGEX REPLACE "(................................................................................)" "\\1\n    "
         bytes "${bytes}")
  string(APPEND page_arrays "static const unsigned char file_${number}[] = {\n    ${bytes}};\n")
  string(APPEND page_table
         "    {\"${name}\", \"${type}\", \"\\\"${sum}\\\"\", file_${number}, sizeof file_${number}},\n")
  math(EXPR number "${number} + 1")
endforeach()
file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/generated/page_data.c @ONLY CONTENT
"/* Made from src/serve/page/ by cmake/page.cmake. */
#include \"serve/page.h\"

@page_arrays@
const struct page_file page_files[] = {
@page_table@};
const size_t page_n_files = sizeof page_files / sizeof *page_files;
")
target_sources(pd_serve PRIVATE ${CMAKE_BINARY_DIR}/generated/page_data.c)
