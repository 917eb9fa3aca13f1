// Test-time augmentation by something that is no transform.
#include <fulmen/predict/augmentation.hpp>

#include "common.hpp"

auto augmentation() { return fulmen::TestTimeAugmentation{std::vector<int>{1, 2}}; }
