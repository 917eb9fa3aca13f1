// Little, as the other consumer compiles all of fulmen.
#include <ATen/core/Tensor.h>
#include <fmt/format.h>
#include <fulmen/error.hpp>

#include <boost/hana/tuple.hpp>

int main() { return at::Tensor().defined() ? 1 : 0; }
