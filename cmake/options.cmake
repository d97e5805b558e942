# One interface target that everything of ours links: warnings, sanitizers, the include root.
add_library(sk_options INTERFACE)
target_include_directories(sk_options INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_definitions(sk_options INTERFACE _GNU_SOURCE SK_VERSION="${PROJECT_VERSION}")
target_compile_options(sk_options INTERFACE
  -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wmissing-prototypes -Wstrict-prototypes
  -Wvla -Wformat=2 -Wundef -Wcast-qual -Wno-gnu-zero-variadic-macro-arguments
  -fno-omit-frame-pointer -fvisibility=hidden -fno-strict-aliasing
  $<$<NOT:$<CONFIG:Debug>>:-O2>)
# One rounding of a float everywhere: no contraction into FMA unless a kernel asks for it by name.
target_compile_options(sk_options INTERFACE -ffp-contract=off)
if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
  target_compile_options(sk_options INTERFACE -Wno-variadic-macros)
endif()
if(SK_WERROR)
  target_compile_options(sk_options INTERFACE -Werror)
endif()
if(SK_MUTANTS)
  target_compile_definitions(sk_options INTERFACE SK_MUTANTS=1)
endif()
if(SK_FUZZ)
  target_compile_options(sk_options INTERFACE -fsanitize=fuzzer-no-link) # coverage for libFuzzer to go by
endif()
if(SK_SANITIZE)
  target_compile_options(sk_options INTERFACE -fsanitize=${SK_SANITIZE} -fno-sanitize-recover=all)
  target_link_options(sk_options INTERFACE -fsanitize=${SK_SANITIZE})
else()
  target_compile_options(sk_options INTERFACE -fstack-protector-strong)
  target_compile_definitions(sk_options INTERFACE $<$<NOT:$<CONFIG:Debug>>:_FORTIFY_SOURCE=2>)
  target_link_options(sk_options INTERFACE -Wl,-z,relro,-z,now -Wl,--as-needed)
endif()
