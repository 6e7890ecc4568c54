# SPDX-License-Identifier: MIT
# kernels/*.cu by nvcc: machine code for every architecture of PFX_CUDA_ARCHITECTURES, and PTX for the devices that come
# after them. The runtime is linked statically, cuBLASLt and the others are opened when a device is asked for, so the
# same program starts on machines that have none of it.
set(PFX_CUDA_ARCHITECTURES "80;90a;100;120" CACHE STRING "Compute capabilities to compile kernels for")
set(PFX_CUDA_PTX "80" CACHE STRING "Compute capability of the PTX that newer devices compile themselves")
if(NOT PFX_CUDA_HOME)
  execute_process(COMMAND ${CMAKE_SOURCE_DIR}/scripts/fetch_cuda.sh toolkit OUTPUT_VARIABLE PFX_CUDA_HOME
                  OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  set(PFX_CUDA_HOME ${PFX_CUDA_HOME} CACHE PATH "The CUDA toolkit")
endif()
find_program(PFX_NVCC nvcc PATHS ${PFX_CUDA_HOME}/bin NO_DEFAULT_PATH REQUIRED)
find_file(PFX_CUDART libcudart_static.a PATHS ${PFX_CUDA_HOME} PATH_SUFFIXES lib64 lib lib/x86_64-linux-gnu
          targets/x86_64-linux/lib NO_DEFAULT_PATH REQUIRED)

set(PFX_NVCC_CODE)
foreach(arch ${PFX_CUDA_ARCHITECTURES})
  list(APPEND PFX_NVCC_CODE -gencode=arch=compute_${arch},code=sm_${arch})
endforeach()
foreach(arch ${PFX_CUDA_PTX})
  list(APPEND PFX_NVCC_CODE -gencode=arch=compute_${arch},code=compute_${arch})
endforeach()
set(PFX_NVCC_FLAGS -std=c++17 -O3 --resource-usage --compress-mode=size -I${CMAKE_SOURCE_DIR} -I${CMAKE_SOURCE_DIR}/host
    "-Xcompiler=-fPIC,-fno-threadsafe-statics,-fno-exceptions,-fno-rtti,-Wall,-Wextra")
if(NOT PFX_BUNDLE)
  list(APPEND PFX_NVCC_FLAGS -Xcompiler=-fvisibility=hidden)
endif()
if(PFX_WERROR)
  list(APPEND PFX_NVCC_FLAGS --Werror=all-warnings -Xcompiler=-Werror)
endif()

# What ptxas says of every kernel (registers, spills, shared memory) lies beside the object: tests/tools/kernel_table.py
# reads it.
file(GLOB PFX_KERNEL_SOURCES CONFIGURE_DEPENDS kernels/*.cu)
file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/kernels)
set(PFX_KERNEL_OBJECTS)
foreach(source ${PFX_KERNEL_SOURCES})
  get_filename_component(name ${source} NAME_WE)
  set(object ${CMAKE_BINARY_DIR}/kernels/${name}.o)
  add_custom_command(OUTPUT ${object} DEPENDS ${source} DEPFILE ${object}.d VERBATIM
    COMMENT "nvcc ${name}.cu"
    COMMAND sh -c "log=$1 && shift && \"$@\" >\"$log\" 2>&1 || { cat \"$log\"; exit 1; }" sh ${object}.log
            ${PFX_NVCC} ${PFX_NVCC_FLAGS} ${PFX_NVCC_CODE} -MD -MF ${object}.d -c ${source} -o ${object})
  list(APPEND PFX_KERNEL_OBJECTS ${object})
endforeach()
add_custom_target(cuda_kernels DEPENDS ${PFX_KERNEL_OBJECTS})
list(APPEND PFX_LIBRARIES ${PFX_CUDART} rt)

# NVIDIA's packages of the runtime come without this header; where it is, what we declare of it is held against it.
if(EXISTS ${PFX_CUDA_HOME}/include/cublasLt.h)
  add_library(cublaslt_check OBJECT tests/tools/cublaslt_check.c)
  target_include_directories(cublaslt_check PRIVATE host)
  target_include_directories(cublaslt_check SYSTEM PRIVATE ${PFX_CUDA_HOME}/include)
endif()
