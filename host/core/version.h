/* SPDX-License-Identifier: MIT */
#ifndef PX_CORE_VERSION_H
#define PX_CORE_VERSION_H

#define PX_VERSION "0.1.0"

#endif
