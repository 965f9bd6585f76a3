//! PSNR, SSIM, LPIPS, FVD, FID, codebook use and compression figures.
