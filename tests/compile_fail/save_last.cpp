// ModelCheckpoint::save_last given as Lightning's text: it would pass for true.
#include "common.hpp"

fulmen::ModelCheckpoint checkpoint{.save_last = "link"};
