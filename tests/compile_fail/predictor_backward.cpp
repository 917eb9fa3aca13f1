// A predictor that cuts its inputs up and does not say how to put the predictions together.
#include <array>

#include "common.hpp"

struct Halves {
  std::array<at::Tensor, 2> forward(const at::Tensor& x) const { return {x, x}; }
};

void predict(const at::Tensor& x) {
  fulmen::run(Halves{}, x, [](const at::Tensor& t) { return t; });
}
