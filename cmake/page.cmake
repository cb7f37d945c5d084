# The server's web page (src/serve/page.html) becomes part of the program. A string literal has a bounded length, so it
# is an array of bytes.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/serve/page.html)
file(READ ${CMAKE_SOURCE_DIR}/src/serve/page.html page HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," page "${page}")
string(REGEX REPLACE "(................................................................................)" "\\1\n    "
       page "${page}")
file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/generated/page_data.c @ONLY CONTENT
"/* Made from src/serve/page.html by cmake/page.cmake. */
#include \"serve/page.h\"

const unsigned char page_html[] = {
    @page@};
const size_t page_html_size = sizeof page_html;
")
target_sources(pd_serve PRIVATE ${CMAKE_BINARY_DIR}/generated/page_data.c)
