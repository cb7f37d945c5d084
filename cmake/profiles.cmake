# The shipped device profiles (profiles/*.ini) become part of the program, so that their names always work.
file(GLOB profile_files CONFIGURE_DEPENDS profiles/*.ini)
set(profile_entries "")
foreach(file ${profile_files})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
  get_filename_component(name ${file} NAME_WE)
  file(READ ${file} text)
  string(REPLACE "\\" "\\\\" text "${text}")
  string(REPLACE "\"" "\\\"" text "${text}")
  string(REPLACE "\n" "\\n\"\n     \"" text "${text}")
  string(APPEND profile_entries "    {\"${name}\",\n     \"${text}\"},\n")
endforeach()
file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/generated/profiles_data.c @ONLY CONTENT
"/* Made from the .ini files in profiles/ by cmake/profiles.cmake. */
#include \"profile/profile_data.h\"

const struct profile_data profile_data[] = {
@profile_entries@    {0},
};
")
target_sources(pd_profile PRIVATE ${CMAKE_BINARY_DIR}/generated/profiles_data.c)
