// Writes the optimizers' state dicts after 50 steps into a file for tests/fixtures/optim/check.py, which
// loads them into Python's optimizers: write_for_python <file>
#include "fixtures.hpp"

#include <fulmen/checkpoint/archive.hpp>

#include <cstdio>

int main(int count, char** arguments) {
  if (count != 2) return std::fprintf(stderr, "usage: write_for_python <file>\n"), 2;
  fulmen::State all;
  for (const fixtures::json& run : fixtures::file()["runs"]) {
    if (run["dtype"] != "float64") continue;
    fixtures::Problem problem(at::kDouble, run["late"]);
    fixtures::with_policy(run["optimizer"], [&](const auto& defaults) {
      auto optimizer = fixtures::policy_of(run["options"], defaults).bind(problem.parameters());
      for (int step = 0; step < fixtures::file()["saved"].get<int>(); ++step) {
        problem.make_gradients(step);
        optimizer.step();
      }
      fulmen::State parameters, one;
      for (const char* name : fixtures::parameter_names) parameters.set(name, problem.t.at(name).detach());
      one.set("optimizer", fulmen::State(optimizer.state_dict())).set("parameters", parameters);
      all.set(run["name"].get<std::string>(), one);
    });
  }
  fulmen::checkpoint::write(arguments[1], all);
}
