#include "noise.hpp"
