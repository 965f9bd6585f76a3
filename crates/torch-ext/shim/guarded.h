// Errors on their way to Rust: no C++ exception ever crosses the border.
#pragma once
#include <c10/util/Exception.h>
#include <cstring>
#include <exception>

namespace vireo {

// Null where the body ran, else a malloc'ed message.
template <typename F> char *guarded(F &&body) {
  try {
    body();
    return nullptr;
  } catch (const c10::Error &e) {
    return strdup(e.what_without_backtrace());
  } catch (const std::exception &e) {
    return strdup(e.what());
  } catch (...) {
    return strdup("unknown C++ exception");
  }
}

} // namespace vireo
