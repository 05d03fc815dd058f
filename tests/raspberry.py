"""What real Raspberry Pis answer, word for word: the fixtures of the tests of boards.

Collected from public forum threads, issue trackers and manuals; nothing in it names a machine.
"""

from __future__ import annotations

# Bits 0 to 3 are now, 16 to 19 since boot.
THROTTLED = {
    "well": "throttled=0x0",
    "weak supply now": "throttled=0x50005",  # Pi 3 and 4 on a phone charger
    "weak supply once": "throttled=0x50000",
    "soft limit now": "throttled=0x80008",  # a 3 B+ above 60 degrees, a Pi 5 above 80
    "hot now": "throttled=0xe0008",
    "hot once": "throttled=0xe0000",
}

# A Pi 5 with all cores busy; the numbers of a rail's two channels have nothing to do with each other.
PMIC = """\
 3V7_WL_SW_A current(0)=0.00000000A
   3V3_SYS_A current(1)=0.06245952A
   1V8_SYS_A current(2)=0.16102850A
  DDR_VDD2_A current(3)=0.00780744A
  DDR_VDDQ_A current(4)=0.00000000A
   1V1_SYS_A current(5)=0.17566740A
    0V8_SW_A current(6)=0.32791250A
  VDD_CORE_A current(7)=10.87674000A
   3V3_DAC_A current(17)=0.00036630A
   3V3_ADC_A current(18)=0.00042735A
   0V8_AON_A current(16)=0.00579975A
      HDMI_A current(22)=0.01367520A
 3V7_WL_SW_V volt(8)=3.79999600V
   3V3_SYS_V volt(9)=3.30632200V
   1V8_SYS_V volt(10)=1.79828900V
  DDR_VDD2_V volt(11)=1.10292900V
  DDR_VDDQ_V volt(12)=0.60476130V
   1V1_SYS_V volt(13)=1.10439400V
    0V8_SW_V volt(14)=0.80256330V
  VDD_CORE_V volt(15)=0.89745940V
   3V3_DAC_V volt(20)=3.30494200V
   3V3_ADC_V volt(21)=3.30219400V
   0V8_AON_V volt(19)=0.79736190V
      HDMI_V volt(23)=5.07056000V
     EXT5V_V volt(24)=5.06788000V
      BATT_V volt(25)=3.01110800V
"""
PMIC_W = 10.80  # added up by hand

# The other format: no numbers of channels, and the unit may be missing.
PMIC_PLAIN = """\
3V3_SYS_A=0.0190A
3V3_SYS_V=3.3063V
VDD_CORE_A curr=0.33300
VDD_CORE_V volt=0.87500
EXT5V_V volt=5.10268V
"""

# On every model without such a chip, with exit status 255.
PMIC_ABSENT = 'vc_gencmd_read_response returned -1\nerror=1 error_msg="Command not registered"'

VERSION = {
    "raspberry-pi-5": "2025/05/08 15:13:17\nCopyright (c) 2012 Broadcom\nversion 69471177 (release) (embedded)",
    "raspberry-pi-4": "May 14 2025 12:23:36 \nCopyright (c) 2012 Broadcom\n"
    "version 17084b403fb60475b8ee2641c26049a7d54bf153 (clean) (release) (start)",
}
BOOTLOADER_VERSION = """\
2023/01/11 17:40:52
version 8ba17717fbcedd4c3b6d4bce7e50c7af4155cba9 (release)
timestamp 1673458852
update-time 0
capabilities 0x0000007f
"""
CLOCK_ARM = {"raspberry-pi-5": "frequency(0)=2400023808", "raspberry-pi-4": "frequency(48)=1800457088"}
NO_DEVICE = (
    "Can't open device file: /dev/vcio\nTry creating a device file with: sudo mknod /dev/vcio c 100 0"  # status 255
)

SWAPS_EMPTY = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
SWAPS_BOOKWORM = SWAPS_EMPTY + "/var/swap                               file\t\t524272\t\t102400\t\t-2\n"
SWAPS_TRIXIE = SWAPS_EMPTY + "/dev/zram0                              partition\t2097136\t\t1280\t\t100\n"
SWAPS_BOTH = (
    SWAPS_EMPTY
    + "/mnt/hdd/swapfile                       file\t\t4194300\t\t867988\t\t-2\n"
    + "/dev/zram0                              partition\t10064516\t0\t\t15\n"
)
SWAPS_PARTITION = SWAPS_EMPTY + "/dev/mmcblk0p3                          partition\t1048572\t\t51200\t\t-3\n"
MOUNTINFO = """\
21 1 179:2 / / rw,noatime shared:1 - ext4 /dev/mmcblk0p2 rw
22 21 0:20 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
60 21 179:1 / /boot/firmware rw,relatime shared:30 - vfat /dev/mmcblk0p1 rw
72 21 8:1 / /mnt/hdd rw,relatime shared:36 - ext4 /dev/sda1 rw
"""
SMAPS = {
    pages: f"""\
55567d7000-55567d8000 r-xp 00000000 b3:02 1441                           /usr/bin/python3.13
Size:                {kib:>4} kB
KernelPageSize:      {kib:>4} kB
MMUPageSize:         {kib:>4} kB
"""
    for pages, kib in (("raspberry-pi-5", 16), ("raspberry-pi-4", 4))
}
