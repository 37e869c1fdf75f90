#include "rotate_quantize.h"
#include <chrono>
#include <cstdio>
#include <vector>
using namespace modernbert;
template<class F> double best(F f){ double b=1e9; for(int r=0;r<60;++r){auto t=std::chrono::steady_clock::now(); f(); double s=std::chrono::duration<double>(std::chrono::steady_clock::now()-t).count(); if(s<b)b=s;} return b; }
template<class T> void run(const char* name,int m,int k,int n){
  int stride=operand_stride<T>(k); std::vector<char> a(m*stride*sizeof(T)+64), b(n*packed_rows<T>(k)*sizeof(T)+64); std::vector<float> c(m*64+16);
  T* A=(T*)(((uintptr_t)a.data()+63)/64*64); T* B=(T*)(((uintptr_t)b.data()+63)/64*64); float* C=(float*)(((uintptr_t)c.data()+63)/64*64);
  double s=best([&]{ for(int p=0;p<n/64;++p) multiply<PACK_WIDTH>(A,stride,B+(size_t)p*packed_rows<T>(k)*64,C,64,m,64,k,false); });
  printf("%s m=%d k=%d n=%d: %.0f GOP/s\n",name,m,k,n,2.0*m*k*n/s/1e9);
}
int main(){ for(int m:{128,96,48,16}) for(int k:{768,1152}) { run<int8>("int8",m,k,2304); run<bfloat16>("bf16",m,k,2304);} 
 std::vector<float> row(1152); std::vector<int8> to(1300); double s=best([&]{ for(int i=0;i<1000;++i){ row[i%1152]=1.5f; quantize_row(row.data(),768,to.data());} }); printf("quantize 768: %.0f ns\n", s*1e6);
 s=best([&]{ for(int i=0;i<1000;++i){ row[i%1152]=1.5f; quantize_row(row.data(),1152,to.data());} }); printf("quantize 1152: %.0f ns\n", s*1e6);}
