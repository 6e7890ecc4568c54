# SPDX-License-Identifier: MIT
# Writes the manual page and the shell completions by asking the command for them.
#   cmake -D PFX=<command> -D OUT=<share folder> -P command_pages.cmake
function(write_page file)
  execute_process(COMMAND ${PFX} ${ARGN} OUTPUT_VARIABLE text ERROR_VARIABLE errors RESULT_VARIABLE code)
  if(NOT code EQUAL 0 OR text STREQUAL "")
    string(JOIN " " arguments ${ARGN})
    message(WARNING "'pfx ${arguments}' failed (${code}): ${errors}")
    return()
  endif()
  file(WRITE ${OUT}/${file} "${text}")
endfunction()

write_page(man/man1/pfx.1 --man)
write_page(bash-completion/completions/pfx --completion bash)
write_page(zsh/site-functions/_pfx --completion zsh)
write_page(fish/vendor_completions.d/pfx.fish --completion fish)
