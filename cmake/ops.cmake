# src/kernel/ops_NAME.c hold one body for each instruction set. Less debug information: it would take most of the
# compiler's time.
function(pd_ops_flags file)
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/kernel/${file} PROPERTIES COMPILE_OPTIONS
                              "-O2;-g1;-fno-var-tracking;${ARGN}")
endfunction()
pd_ops_flags(ops_plain.c)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$")
  pd_ops_flags(ops_avx2.c -mavx2 -mfma -mf16c)
  pd_ops_flags(ops_avx512.c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c)
endif()
