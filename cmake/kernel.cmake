# Exact kernels: every variant of the processor's family is compiled, each file with its own instructions, and the one
# to use is chosen at run time. No contraction of a * b + c anywhere: fused operations are where the source says so.
# The variants' files are mostly unrolled code; -g1 spares them the tracking of variables, which takes long.
target_compile_options(pd_kernel PRIVATE -O2 -ffp-contract=off)
set_source_files_properties(${CMAKE_SOURCE_DIR}/src/kernel/plain.c ${CMAKE_SOURCE_DIR}/src/kernel/pack.c
                            ${CMAKE_SOURCE_DIR}/src/kernel/block.c PROPERTIES COMPILE_OPTIONS "-O3")
# Under sanitizers these files alone go without: their checks in unrolled code take ten minutes to compile. Plain C and
# packing, which have the same layouts and bits, are checked.
if(PIPEDEC_SANITIZE OR PIPEDEC_FUZZ)
  set(unchecked "-fno-sanitize=all;")
endif()
function(pd_kernel_flags file)
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/kernel/${file} PROPERTIES COMPILE_OPTIONS "-g1;${unchecked}${ARGN}")
endfunction()
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$")
  set(avx2 -mavx2 -mfma -mf16c)
  pd_kernel_flags(avx2.c ${avx2})
  pd_kernel_flags(avxvnni.c ${avx2} -mavxvnni)
  pd_kernel_flags(avx512.c ${avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  pd_kernel_flags(neon.c -march=armv8.2-a+dotprod)
endif()
