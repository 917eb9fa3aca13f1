// How fulmen reports bad input: a standard exception with one formatted line.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace fulmen {

/// Throws `Exception` (std::runtime_error unless said) with the formatted message.
/// Standard exception classes are used throughout, so that fulmen itself brings no vtable and no typeinfo.
/// Marked cold: a check costs its caller one compare and one branch that is predicted not taken.
template <class Exception = std::runtime_error, class... Args>
[[noreturn, gnu::cold, gnu::noinline]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Exception(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace fulmen
