# SPDX-License-Identifier: MIT
# cuDNN's attention needs two sets of headers: cuDNN's own (the toolkit's, the system's, or those of its Python package) and the
# front end's (NVIDIA's Python package nvidia-cudnn-frontend, 2 MB, fetched once). Where one is missing attention_cudnn_none.c takes the place.
# The library itself is opened when it is asked for.
option(PFX_WITH_CUDNN "cuDNN as a second attention engine, where its headers are found" ON)
set(PFX_CUDNN FALSE)
if(PFX_WITH_CUDNN)
  file(GLOB places /usr/lib/python3*/*-packages/nvidia/cudnn/include /usr/local/lib/python3*/*-packages/nvidia/cudnn/include
       /opt/*/lib/python3*/site-packages/nvidia/cudnn/include)
  find_path(PFX_CUDNN_INCLUDE cudnn.h PATHS ${PFX_CUDA_HOME}/include ${places})
  if(PFX_CUDNN_INCLUDE AND NOT PFX_CUDNN_FRONTEND)
    execute_process(COMMAND ${CMAKE_COMMAND} -E env PIP_RETRIES=1 PIP_DEFAULT_TIMEOUT=10 ${CMAKE_SOURCE_DIR}/scripts/fetch_cuda.sh frontend
                    OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE code)
    if(code EQUAL 0)
      set(PFX_CUDNN_FRONTEND ${folder}/include CACHE PATH "Headers of cuDNN's front end")
    endif()
  endif()
  if(PFX_CUDNN_INCLUDE AND PFX_CUDNN_FRONTEND)
    set(PFX_CUDNN TRUE)
  endif()
endif()
if(PFX_CUDNN)
  enable_language(CXX)
  add_library(cudnn_graph OBJECT host/backend/cudnn_graph.cpp)
  set_target_properties(cudnn_graph PROPERTIES CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON CXX_VISIBILITY_PRESET hidden)
  target_compile_options(cudnn_graph PRIVATE -O1 -Wall -Wextra -Wshadow $<$<BOOL:${PFX_WERROR}>:-Werror>)
  target_include_directories(cudnn_graph PRIVATE ${CMAKE_SOURCE_DIR}/host ${CMAKE_SOURCE_DIR})
  target_include_directories(cudnn_graph SYSTEM PRIVATE ${PFX_CUDNN_FRONTEND} ${PFX_CUDNN_INCLUDE} ${PFX_CUDA_HOME}/include)
  list(APPEND PFX_KERNEL_OBJECTS $<TARGET_OBJECTS:cudnn_graph>)
  list(APPEND PFX_LIBRARIES stdc++)
  # Without the runtime: it brings a device of its own.
  add_executable(cudnn_check tests/tools/cudnn_check.c $<TARGET_OBJECTS:cudnn_graph>)
  target_include_directories(cudnn_check PRIVATE ${CMAKE_SOURCE_DIR}/host ${CMAKE_SOURCE_DIR})
  target_include_directories(cudnn_check SYSTEM PRIVATE ${PFX_CUDA_HOME}/include)
  target_compile_definitions(cudnn_check PRIVATE _GNU_SOURCE)
  target_link_libraries(cudnn_check PRIVATE stdc++ m Threads::Threads ${CMAKE_DL_LIBS})
else()
  message(STATUS "no cuDNN: --attention has auto and fused (cudnn.h: ${PFX_CUDNN_INCLUDE}, cudnn_frontend.h: ${PFX_CUDNN_FRONTEND})")
endif()
