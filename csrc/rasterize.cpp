#include "rasterize.hpp"
