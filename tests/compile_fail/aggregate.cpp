// An aggregate without a name.
#include <fulmen/metrics/case_metrics.hpp>

void run() {
  fulmen::aggregate_fn("std", [](fulmen::CaseValues values) { return values[0]; });
}
